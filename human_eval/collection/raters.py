"""Raters: who they are in the database. Their names are never stored, only a keyed hash."""

from collections.abc import Callable

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from human_eval.errors import StudyError
from human_eval.storage.keys import Keys
from human_eval.storage.tables import Rater

SIMULATED = "simulated"  # the provider of simulated raters
# The dialects' own INSERT, which knows ON CONFLICT.
INSERT: dict[str, Callable[..., sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


def enter(
    connection: Connection,
    keys: Keys,
    provider: str,
    name: str,
    *,
    now: int,
    simulated: bool = False,
) -> int:
    """Return the number of a rater, who is added if unknown.

    Args:
        name: identifies the rater at the provider.

    Raises:
        StudyError: a rater of the provider "simulated" is not simulated, or vice versa.
    """
    hashed = keys.pseudonym(provider, name)
    return enter_pseudonym(connection, provider, hashed, now=now, simulated=simulated)


def enter_pseudonym(
    connection: Connection,
    provider: str,
    pseudonym: str,
    *,
    now: int,
    simulated: bool = False,
    consented: bool = True,
) -> int:
    """Like `enter`, for a name that is already hashed."""
    if simulated != (provider == SIMULATED):
        raise StudyError(
            f"The provider {SIMULATED!r} is reserved for simulated raters. Choose another name for "
            f"the provider {provider!r}."
        )
    known = {"provider": provider, "pseudonym": pseudonym}
    number = connection.execute(_BY_NAME, known).scalar()
    if number is not None:
        return number
    values = {
        **known,
        "simulated": simulated,
        "created_at": now,
        "consented_at": now if consented else None,
    }
    insert_new = INSERT[connection.dialect.name](Rater).on_conflict_do_nothing(
        index_elements=[Rater.provider, Rater.pseudonym]
    )
    added = connection.execute(insert_new.returning(Rater.id), values).scalar()
    # None if another PostgreSQL connection has added the same rater in the meantime.
    return connection.execute(_BY_NAME, known).scalar_one() if added is None else added


def find_rater(connection: Connection, pseudonym: str) -> int:
    """Return the number of the rater with that pseudonym.

    Raises:
        StudyError: there is none.
    """
    number = connection.execute(select(Rater.id).where(Rater.pseudonym == pseudonym)).scalar()
    if number is None:
        raise StudyError(f"No rater has the pseudonym {pseudonym!r}. `screen` lists them.")
    return number


def check_rater(connection: Connection, number: int) -> None:
    """Raise a `StudyError` if there is no such rater."""
    if connection.execute(select(Rater.id).where(Rater.id == number)).first() is None:
        raise StudyError(f"There is no rater {number}. Reload the page.")


def identify_rater(connection: Connection, keys: Keys, name: str) -> int:
    """Return the number of the rater with that pseudonym, or with that name at their provider.

    Raises:
        StudyError: there is none, or several providers have such a rater.
    """
    providers = connection.execute(select(Rater.provider).distinct()).scalars()
    names = [name, *(keys.pseudonym(provider, name) for provider in providers)]
    found = select(Rater.id).where(Rater.pseudonym.in_(names))
    numbers = connection.execute(found).scalars().all()
    if len(numbers) != 1:
        how = "Several raters have" if numbers else "No rater has"
        raise StudyError(f"{how} the pseudonym or name {name!r}. `raters` lists the pseudonyms.")
    return numbers[0]


_BY_NAME = select(Rater.id).where(
    Rater.provider == bindparam("provider"), Rater.pseudonym == bindparam("pseudonym")
)
