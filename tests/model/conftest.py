"""The fixture of this folder: a deployment of the real programs."""

from __future__ import annotations

from support.deployment import new_deployment, pytest_runtest_makereport  # noqa: F401
