"""`python -m app.cli`, where the `finetuned` script is not on the path."""

from app.cli.main import main

main()
