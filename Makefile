# Meridian. `make` lists the targets. All but `images`, `compose-*` and parts of `e2e` need only Go and make.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
BINARIES := meridian-global meridian-zone meridian-agent

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATE ?= $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)
V := github.com/meridian-mesh/meridian/common/version
LDFLAGS := -s -w -X $(V).version=$(VERSION) -X $(V).commit=$(COMMIT) -X $(V).buildDate=$(DATE)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: build ## run a global and two zones, replicate real resources and show them; Ctrl-C stops all
	bin/meridian-demo $(DEMO_FLAGS)

.PHONY: build
build: ## build static binaries into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(BINARIES)) ./cmd/meridian-demo

.PHONY: test
test: ## all tests: unit, conformance, simulation, processes; containers where a Docker engine answers, Postgres where installed
	go test -timeout 10m ./...

.PHONY: race
race: ## the tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -shuffle=on -short -timeout 12m $$(go list ./... | grep -v /meridian/e2e$$)

.PHONY: lint
lint: ## go vet and golangci-lint
	go vet ./...
	go run $(GOLANGCI) run ./...

.PHONY: fmt
fmt: ## format the code
	go run $(GOLANGCI) fmt ./...

.PHONY: generate
generate: ## write the generated code, docs/CONFIGURATION.md and docs/openapi again
	go run ./api/internal/protogen
	go test ./api/server -run '^TestTheDescriptionIsTheOneInDocs$$' -count=1 -update
	go test ./cmd/internal/launch -run '^TestReferencePageIsUpToDate$$' -count=1 -update

.PHONY: check
check: lint ## what CI checks: lint, format, generated code, module file; changes nothing
	go run $(GOLANGCI) fmt --diff ./...
	go run ./api/internal/protogen -check
	go mod tidy -diff
	go mod verify

.PHONY: vuln
vuln: ## look for known vulnerabilities (needs the vulnerability database)
	go run $(GOVULNCHECK) ./...

.PHONY: e2e
e2e: ## the scenarios on processes and, where a Docker engine answers, on containers (required there)
	@if docker info >/dev/null 2>&1; then \
	  echo "Docker answers: container scenarios are required"; MERIDIAN_REQUIRE_DOCKER=1 go test -count=1 -timeout 15m -v ./e2e; \
	else \
	  echo "no Docker engine answers: container scenarios are NOT RUN, the same scenarios run as processes"; go test -count=1 -timeout 15m -v ./e2e; \
	fi

.PHONY: stress
stress: ## the long rounds: 50 crash rounds, 50 times two fresh replicas, 60 s of mixed load, 2,000 simulated histories, 50 histories on Postgres under faults
	MERIDIAN_STRESS_ROUNDS=50 go test -count=1 -timeout 60m -run 'Crash|FreshReplicas' -v ./e2e
	MERIDIAN_LOAD_SECONDS=60 go test -count=1 -timeout 10m -run MixedLoad -v ./e2e
	go test -count=1 -timeout 60m ./e2e/simulation -run Converge -rapid.checks=2000
	MERIDIAN_STRESS_ROUNDS=50 go test -count=1 -timeout 30m -run 'UnderFaults|StartAtOnce' -v ./common/store/postgres

FUZZTIME ?= 10m
.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 10m each)
	@for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "== $$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p; \
	  done; \
	done

.PHONY: bench
bench: ## the benchmarks; docs/PERFORMANCE.md says how to read them
	go test -run '^$$' -bench . -benchmem -timeout 30m ./...

.PHONY: images
images: build ## build the container images meridian/global:dev, meridian/zone:dev and meridian/agent:dev
	docker build -q -t meridian/global:dev -f deploy/docker/Dockerfile.global .
	docker build -q -t meridian/zone:dev -f deploy/docker/Dockerfile.zone .
	docker build -q -t meridian/agent:dev -f deploy/docker/Dockerfile.agent .

COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
.PHONY: compose-up compose-down compose-ha-up compose-ha-down
compose-up: images ## start the compose demo: a global and two zones
	$(COMPOSE) -f deploy/compose/docker-compose.yml up -d
compose-down: ## stop the compose demo and remove its volumes
	$(COMPOSE) -f deploy/compose/docker-compose.yml down -v
compose-ha-up: images ## start the compose demo of replicas: two globals, two zones, one in two replicas, Postgres
	$(COMPOSE) -f deploy/compose/docker-compose.ha.yml -p meridian-ha up -d
compose-ha-down: ## stop the demo of replicas and remove its volumes
	$(COMPOSE) -f deploy/compose/docker-compose.ha.yml -p meridian-ha down -v

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
