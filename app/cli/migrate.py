"""`finetuned migrate`: bring the database's tables to this version."""

from pathlib import Path

from alembic import command
from alembic.config import Config

import migrations


def upgrade() -> None:
    """Apply what is missing; fine if nothing is. Many processes may ask at once: PostgreSQL lets one at a time."""
    command.upgrade(config(), "head")


def config() -> Config:
    """Alembic's, with the scripts where the package has them."""
    found = Config()
    found.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return found
