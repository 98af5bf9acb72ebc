"""The versions of the tables, one file each; Alembic runs them."""
