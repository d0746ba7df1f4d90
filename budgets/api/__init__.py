"""What programs of operators may ask and do, under ``/manage/v1/``."""
