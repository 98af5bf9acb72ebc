"""Tests, in folders that mirror the code; `support/` holds what they share.

`check` verifies every annotation of `turbo` while tests run; pyproject.toml names it to jaxtyping.
"""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is accepted as a float
