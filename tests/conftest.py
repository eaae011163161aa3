"""For all tests."""

from hypothesis import settings

# The same examples in every run, and no deadlines. `--hypothesis-profile=default` finds new ones.
settings.load_profile("ci")
