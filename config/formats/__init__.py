"""How dates are written in each language; numbers are as Django has them."""
