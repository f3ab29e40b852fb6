"""From raw runs to claims: statistics, tables, figures, LaTeX and one page, without model libraries."""
