"""How every secret begins: what opens the doors to models opens no others, and the other way round."""

CALLING = "tg_"
MANAGING = "tgm_"
MARKS = (CALLING, MANAGING)
