"""Who manages, and the keys for calls, under ``/manage/v1/``."""
