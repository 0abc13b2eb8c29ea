# The site of docs/, made by MkDocs; settings in mkdocs.yml. Included by the Makefile. `make test` builds it as well.
.PHONY: docs docs-serve
docs: $(READY)  ## the site, in site/; fails at the first warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(READY)  ## the site in a browser, made anew at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve
