"""``python -m awesomeconnect`` is the command ``awesomeconnect``."""

from awesomeconnect.cli import main

main()
