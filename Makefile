# idlerace: build, run, test. Go and make are all it needs; `make help` lists the targets.

GO        ?= go
SCENARIO  ?= scenarios/quickstart.yaml
RUNTIME   ?= auto
RUN       ?= results/latest
FORMAT    ?= terminal
BASELINE  ?=
ARGS      ?=
TESTFLAGS ?=
BENCH     ?= .
FUZZTIME  ?= 60s

BIN     := bin/idlerace
COMPILE  = $(GO) build -trimpath -buildvcs=false -ldflags "-X main.version=$(VERSION)"
VERSION := $(or $(shell git describe --always --dirty --tags 2>/dev/null),devel)

# Linters have a module of their own, so the program's go.mod never names them.
STATICCHECK := $(GO) tool -modfile=.ci/tools/go.mod staticcheck
ACTIONLINT  := $(GO) tool -modfile=.ci/tools/go.mod actionlint

.DEFAULT_GOAL := help

##@ Use

.PHONY: run-scenario
run-scenario: build ## run SCENARIO on RUNTIME and print its matrix
	@exec $(BIN) run "$(SCENARIO)" --runtime "$(RUNTIME)" $(ARGS)

.PHONY: report
report: build ## print RUN as FORMAT: terminal, markdown, json, csv, ...
	@exec $(BIN) report "$(RUN)" --format "$(FORMAT)" $(ARGS)

.PHONY: gate
gate: build ## fail when RUN violates its policy, or got worse than BASELINE (a verdicts.json)
	@exec $(BIN) gate "$(RUN)" $(if $(BASELINE),--baseline "$(BASELINE)") $(ARGS)

.PHONY: react
react: build ## test how each proxy reacts when a reused connection ends, on RUNTIME
	@exec $(BIN) react scenarios/reaction.yaml --runtime "$(RUNTIME)" $(ARGS)

.PHONY: doctor
doctor: build ## say which proxies can run here, and how to get the others
	@exec $(BIN) doctor $(ARGS)

.PHONY: build
build: ## build bin/idlerace
	@CGO_ENABLED=0 $(COMPILE) -o $(BIN) ./harness
	@test "$$($(GO) env GOOS)" = linux || $(MAKE) --no-print-directory linux

# Containers run this program on Linux, whatever runs it here.
LINUXARCH ?= $(shell $(GO) env GOARCH)

.PHONY: linux
linux: ## build bin/idlerace-linux-LINUXARCH, for containers started from another system
	@CGO_ENABLED=0 GOOS=linux GOARCH=$(LINUXARCH) $(COMPILE) -o $(BIN)-linux-$(LINUXARCH) ./harness

##@ Work on it

# One package after the other: a browser or a build beside them makes bursts late.
.PHONY: test
test: ## run all tests; what is not installed is skipped, by name
	$(GO) test -p 1 -timeout 30m $(TESTFLAGS) ./...

.PHONY: test-e2e
test-e2e: ## run the end-to-end tests only: real proxies, real sockets
	$(GO) test -count=1 -run 'E2E|Script' $(TESTFLAGS) ./harness/...

.PHONY: test-netem
test-netem: ## test the netem link in a virtual machine whose kernel has netem (Debian, amd64)
	@.ci/netem-vm

.PHONY: race
race: ## run all tests under the race detector (needs a C compiler)
	$(GO) test -p 1 -timeout 30m -race -count=1 $(TESTFLAGS) ./...

.PHONY: bench
bench: ## run the benchmarks that match BENCH
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m $(TESTFLAGS) ./harness/...

# `go test -list` prints a package's targets, then its closing line: ok PACKAGE TIME.
.PHONY: fuzz
fuzz: ## fuzz every target in turn, FUZZTIME each
	@list=$$($(GO) test -list '^Fuzz' ./harness/...) || { printf '%s\n' "$$list"; exit 1; }; \
	printf '%s\n' "$$list" | awk '/^Fuzz/ { names[++n] = $$1 } \
		$$1 == "ok" { for (i = 1; i <= n; i++) print $$2, names[i]; n = 0 }' | \
	while read -r pkg name; do \
		echo "$(GO) test -run ^$$ -fuzz ^$$name\$$ -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$pkg"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "$$pkg" </dev/null || exit 1; \
	done

.PHONY: golden
golden: ## rewrite the golden files of every package whose tests take -update
	@packages=$$(grep -rlE 'flag\.Bool(Var)?\(.*"update"' --include='*_test.go' harness | \
		xargs -n 1 dirname | sort -u | sed 's,^,./,'); \
	echo "$(GO) test -count=1 $(TESTFLAGS)" $$packages -update; \
	$(GO) test -count=1 $(TESTFLAGS) $$packages -update

.PHONY: lint
lint: lint-format lint-vet lint-static lint-modules lint-ci ## run every linter; `make -k lint` goes on after a finding

.PHONY: lint-format
lint-format:
	@files=$$("$$($(GO) env GOROOT)/bin/gofmt" -s -l harness .ci/tools) || exit 1; \
	test -z "$$files" || { echo "not formatted (gofmt -s -w FILE does it):"; echo "$$files"; exit 1; }

# The second system compiles what Linux leaves out.
.PHONY: lint-vet
lint-vet:
	$(GO) vet ./...
	GOOS=darwin $(GO) vet ./...

.PHONY: lint-static
lint-static:
	$(STATICCHECK) ./...

.PHONY: lint-modules
lint-modules:
	$(GO) mod tidy -diff
	$(GO) -C .ci/tools mod tidy -diff

# Workflows and the action they use, and the Kubernetes manifests by Kubernetes' types.
.PHONY: lint-ci
lint-ci:
	$(ACTIONLINT)
	$(GO) -C .ci/tools test ./...

.PHONY: modernise
modernise: ## show what go fix would rewrite: advice, no part of lint
	$(GO) fix -diff ./...

.PHONY: images
images: ## build the proxies' container images where no registry can be reached
	@docker/local-images

.PHONY: publish
publish: build ## measure results/reference: minutes, on a machine with nothing else to do
	@.ci/publish

.PHONY: clean
clean: ## remove bin/, test binaries and profiles; results/ and Go's own caches stay
	rm -rf bin
	rm -f *.test *.prof

.PHONY: help
help: ## print this
	@awk -F ':.*## ' ' \
		/^##@ /              { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## /  { printf "  %-13s %s\n", $$1, $$2 }' Makefile
	@printf '\n%s\n' 'Variables, as make TARGET NAME=value'
	@printf '  %-13s %s\n' \
		SCENARIO '$(SCENARIO)' RUNTIME '$(RUNTIME)' RUN '$(RUN)' FORMAT '$(FORMAT)' BASELINE '$(BASELINE)' \
		ARGS '$(or $(ARGS),more flags for idlerace)' TESTFLAGS '$(or $(TESTFLAGS),more flags for go test)' \
		BENCH '$(BENCH)' FUZZTIME '$(FUZZTIME)'
