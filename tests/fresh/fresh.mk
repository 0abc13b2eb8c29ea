# The README's commands on bare systems, and what is given away; results in docs/fresh.md. Included by the Makefile.
.PHONY: fresh test-built
fresh:  ## demo, tests and built files on two bare Debian systems, one without a compiler (needs root and debootstrap)
	tests/fresh/fresh.sh

test-built:  ## sdist and wheel, each installed into an empty environment elsewhere, and a run there
	tests/fresh/built.sh $(PYTHON)
