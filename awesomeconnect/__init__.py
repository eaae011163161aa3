"""AwesomeConnect."""
