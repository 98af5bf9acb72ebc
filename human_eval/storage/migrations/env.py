"""Alembic's entry point: run the migrations on the connection of `storage.migrate`."""

from alembic import context

from human_eval.storage.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a constraint: the table is copied
    transactional_ddl=True,  # a step that fails leaves nothing behind
)
with context.begin_transaction():
    context.run_migrations()
