# Everything here sets itself up; Rust is all that most of it needs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
TARGET ?= $(shell uname -m)-unknown-linux-musl
# As cargo has it.
BUILT := $(or $(CARGO_TARGET_DIR),target)
# The program that goes into the image: BIN=… takes one that is built already.
BIN ?= $(BUILT)/$(TARGET)/dist/portcullis
IMAGE ?= portcullis:dev

.PHONY: help run program check test test-long conformance-json-schema conformance-http conformance-grpc conformance-websocket e2e bench fuzz lint audit crds static image cluster

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## start a gateway over examples/quickstart with two echo backends, and print what to try
	@examples/quickstart/run

# A bench beside it, the smallest: whatever uses dev-dependencies gives the program the features that `cargo test`
# builds it with. Alone it would have others, and every dependency would be built again.
program: ## target/debug/portcullis, as the tests build it
	@cargo build --bin portcullis --bench lookup

check: ## the quick inner loop: format, compile, unit tests
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	cargo test --quiet --lib

test: ## everything that this machine can carry; ends with a table
	@tests/run

test-long: ## what takes long: h2spec, gRPC's, Autobahn's and JSON Schema's own cases, every pair of protocols, caches, mixed load, failing backends, broken inputs, restarts of the API server, ten rollouts
	@tests/run h2spec grpc autobahn protocols json-schema http-cache soak backends mutations faults rollouts

conformance-json-schema: ## the JSON-Schema-Test-Suite's required cases, asked of the running gateway
	@tests/run json-schema

conformance-http: ## the published suite for HTTP caches (npm)
	@tests/run http-cache

conformance-grpc: ## gRPC's interoperability cases, grpc-go on both sides of the gateway (Go)
	@tests/run grpc

conformance-websocket: ## Autobahn's cases, HTTP/1.1 and HTTP/2 on both sides of the gateway (PyPI)
	@tests/run autobahn

e2e: ## only the parts with a real Kubernetes
	@tests/run control-plane pods

cluster: ## a shell beside a real Kubernetes, gone when you leave it (root)
	@e2e/run pods --shell

bench: ## CPU for each request, beside nginx in the same run
	@for tool in nginx wrk h2load openssl redis-server; do command -v $$tool > /dev/null || missing="$$missing $$tool"; done; \
	  [ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; } || \
	    { echo "this needs$$missing (Debian: nginx-light wrk nghttp2-client openssl redis-server; as root it installs them)"; exit 1; }; \
	  [ -z "$$missing" ] || e2e/cluster/packages.sh nginx-light wrk nghttp2-client openssl redis-server
	cargo build --profile dist --bin portcullis
	@benches/http/run --binary $(abspath $(BUILT)/dist/portcullis)

# Target and the longest input that it is given.
FUZZED = manifests:8192 path:1024 token:9000 proxy_header:6000 merge:4096 expression:2048 template:2048 head:4096 cache:4096 answer:4096

fuzz: ## FUZZ_SECONDS (60) of broken bytes for each target of fuzz/; installs nightly Rust and cargo-fuzz where they are missing
	@cargo +nightly --version > /dev/null 2>&1 || rustup toolchain install nightly --profile minimal
	@cargo fuzz --version > /dev/null 2>&1 || cargo install --locked cargo-fuzz
	@cp Cargo.lock fuzz/Cargo.lock
	@for one in $(FUZZED); do name=$${one%:*}; seeds=; mkdir -p fuzz/corpus/$$name; \
	  [ ! -d fuzz/seeds/$$name ] || seeds=fuzz/seeds/$$name; \
	  cargo +nightly fuzz run $$name fuzz/corpus/$$name $$seeds -- \
	    -max_total_time=$(or $(FUZZ_SECONDS),60) -max_len=$${one#*:} || exit 1; done

lint: ## what CI refuses: format, clippy, chart
	cargo fmt --check
	cargo clippy --quiet --all-targets -- -D warnings
	@e2e/run chart

audit: ## licences, sources and advisories of the dependencies (cargo-deny)
	@tests/audit

crds: program ## write the CRDs from the Rust types, here and into the chart
	@$(BUILT)/debug/portcullis crds --output crds
	@cp crds/*.yaml charts/portcullis/crds/

ifeq ($(origin BIN),file)
.PHONY: $(BIN)
$(BIN):
	@command -v musl-gcc > /dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; } || \
	  { echo "a static build needs musl-gcc (Debian: musl-tools; as root it installs that)"; exit 1; }
	@command -v musl-gcc > /dev/null || e2e/cluster/packages.sh musl-tools
	rustup target add $(TARGET)
	CC_$(subst -,_,$(TARGET))=musl-gcc cargo build --locked --profile dist --target $(TARGET) --bin portcullis
endif

static: $(BIN) ## a program that needs no library and no file beside it (what the Dockerfile runs)

image: $(BIN) ## a static image FROM scratch, as target/image.tar: for `kind load image-archive`, `docker load`, `ctr images import`
	@command -v python3 > /dev/null || { echo "the image is put together by python3, which is not here"; exit 1; }
	@mkdir -p target
	@e2e/cluster/mkimage.py target/image.tar $(IMAGE) --entry /portcullis --user 65532:65532 \
	  --port 8080/tcp --port 8443/tcp --port 9090/tcp --port 9091/tcp $(BIN)=/portcullis
