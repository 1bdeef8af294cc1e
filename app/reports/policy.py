"""What this server's operator wants of data, out of the settings."""

from app.files.spec import DataPolicy
from app.settings import get_settings


def current() -> DataPolicy:
    """Raises `pydantic.ValidationError` for a kind of finding that there is not."""
    settings = get_settings()
    folder = settings.benchmarks_dir or settings.home / "benchmarks"
    return DataPolicy.model_validate(
        {"refuse_above": settings.refuse_above, "benchmarks": str(folder.absolute()) if folder.is_dir() else None}
    )
