"""Fixtures of the whole suite are plugins; they are named here."""

pytest_plugins = ["tests.lab_fixture", "tests.slim_fixture", "tests.token_fixtures"]
