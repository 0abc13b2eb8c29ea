# The site of docs/, made by MkDocs; settings in mkdocs.yml. Included by the Makefile.
DOCS := $(VENV)/.docs

$(DOCS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

.PHONY: docs docs-serve
docs: $(DOCS)  ## the site, in site/; fails at the first warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(DOCS)  ## the site in a browser, made anew at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve
