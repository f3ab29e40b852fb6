"""From raw runs to claims: statistics, tables, figures, LaTeX, narrative and one page. Needs no model
library.
"""
