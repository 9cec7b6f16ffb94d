"""The run-time check of jaxtyping's shapes: beartype, with ints welcome where floats are."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
