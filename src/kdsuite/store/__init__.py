"""What lies in a results folder: paths, atomic files, records, locks."""
