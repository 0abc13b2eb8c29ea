results: $(READY)  ## docs/results.md from the records of experiments; finished runs of table1-small are copied in first
	$(BIN)/python experiments/results.py $(if $(wildcard runs/table1-small),--collect runs/table1-small table1-small)

.PHONY: results
