"""The stages of the pipeline, one file each, and the workshop that their runs share."""
