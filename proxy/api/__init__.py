"""Where calls go, under ``/manage/v1/``."""
