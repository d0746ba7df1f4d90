"""The root of every refusal."""


class Refusal(Exception):
    """A no on purpose.

    Raised by the part that knows the rule, as a fact of the domain. Which
    status, code and sentence a caller gets for it is decided in one table,
    ``proxy.errors.ANSWERS``. ``tenant`` is the slug of whose call it was, where
    that is known.
    """

    tenant = ""
