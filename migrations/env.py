"""Alembic's way in: the app's own engine and tables."""

from alembic import context

import app.auth
import app.files.models
import app.jobs.models
import app.registry.models
import app.reports.models
import app.uploads.models
import app.webhooks.models
import app.work.models  # noqa: F401  every module with tables, so that autogenerate sees them
from app.db import Base, get_engine

with get_engine().connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
    # A migration waits for a lock no longer than requests would, instead of stopping them all.
    connection.exec_driver_sql("SET lock_timeout = '5s'")
    connection.commit()
    with context.begin_transaction():
        context.run_migrations()
