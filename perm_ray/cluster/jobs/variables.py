"""Environment variables by which `perm-ray submit` tells a job what it cannot know; both sides name them."""

from __future__ import annotations

SUBMISSION_ID = "PERM_RAY_SUBMISSION_ID"
DASHBOARD_URL = "PERM_RAY_DASHBOARD_URL"
GIT_SHA = "PERM_RAY_GIT_SHA"
MLFLOW_RUN_ID = "PERM_RAY_MLFLOW_RUN_ID"
