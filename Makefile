# What developers type, one target at a time. Tests and `make run` need root for Podman's sandbox: sudo is used when we are not root.

# what cargo runs as root, when we are not
AS_ROOT = $(if $(SUDO),--config "target.'cfg(all())'.runner = '$(SUDO)'")
TARGET := $(or $(CARGO_TARGET_DIR),target)
# what the guests of `make station-test` boot from and run
VIRTUAL := $(TARGET)/virtual-station
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SOURCES := $(shell find src profiles workers defaults.yml Cargo.toml Cargo.lock -type f 2>/dev/null)
# with a Podman of your own (SILVASONIC_CONTAINER_SOCKET), `make run` does without root
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
RUN_SUDO := $(if $(SILVASONIC_CONTAINER_SOCKET),,$(SUDO))
# where rustup puts its programs; a shell that was open before rustup came does not know the place yet
CARGO_BIN := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
ifneq ($(wildcard $(CARGO_BIN)/cargo),)
export PATH := $(CARGO_BIN):$(PATH)
endif
# more than the smallest machine has cores: most tests wait, and two at a time used less than one core of two
RUST_TEST_THREADS ?= 4
export RUST_TEST_THREADS

.PHONY: help setup recorder run plug unplug test test-podman5 test-fresh bench bench-check figures pictures aarch64 station-test fuzz soak soak-recorder lint format clippy doc sound deb images reproducible package-test release clean

help: ## show this list
	@sed -n 's/^\([a-z0-9 -]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## install what tests and `make run` need (apt); prints nothing when all is there
	@tests/setup

recorder: setup $(TARGET)/static/silvasonic-recorder $(TARGET)/static/silvasonic-controller $(TARGET)/capture/silvasonic-recorder ## build the programs that go into test images

# linked statically, for an image that holds nothing else; the plain build uses the same place below debug/
$(TARGET)/static/%: $(SOURCES)
	@echo "building $* for the test image (a minute or two the first time)"
	@cargo rustc --bin $* -- -C target-feature=+crt-static -C strip=debuginfo
	@mkdir -p $(@D)
	@cp $(TARGET)/debug/$* $@.new && mv $@.new $@

# the one that records; it needs ALSA's library beside it
$(TARGET)/capture/silvasonic-recorder: $(SOURCES)
	@echo "building the Recorder that records"
	@cargo rustc --quiet --features capture --bin silvasonic-recorder -- -C strip=debuginfo
	@mkdir -p $(@D)
	@cp $(TARGET)/debug/silvasonic-recorder $@.new && mv $@.new $@

run: setup recorder ## start a throw-away station with the Controller in the foreground; Ctrl-C removes it
	@echo "building the Controller and its station"
	@cargo build --bins --example station
	@$(RUN_SUDO) $(TARGET)/debug/examples/station

plug unplug: ## plug or unplug the simulated microphone of `make run`
	@[ -e .station/hardware/$@ ] || { echo "no station with a simulated microphone runs here (make run)" >&2; exit 1; }
	@$(RUN_SUDO) ln -sfn hardware/$@ .station/host.new && $(RUN_SUDO) mv -T .station/host.new .station/host

test: setup recorder ## run all tests, or some: make test TESTS="--test it -- plug::"
	tests/progress cargo test $(AS_ROOT) $(TESTS)
	$(if $(TESTS),,tests/progress cargo test $(AS_ROOT) --features capture --bin silvasonic-recorder --test it -- recording:: settings::)

test-podman5: setup recorder ## run the tests that touch Podman on 5.x, in a chroot of Debian trixie (made by debootstrap)
	@tests/podman-sandbox up /tmp/sv-trixie --suite trixie --rootfs /var/tmp/silvasonic-trixie >/dev/null; tests/podman-sandbox down /tmp/sv-trixie
	STATION_PODMAN="--suite trixie --rootfs /var/tmp/silvasonic-trixie --fake-snd" cargo test --test it -- start:: logs:: plug:: arrival:: ends:: replace:: standby:: --skip rootless

test-fresh: ## run `make test` and `make run` on a bare Debian 12 and 13 (made by debootstrap); SUITES="bookworm trixie"
	@$(SUDO) tests/fresh $(SUITES)

bench: setup recorder ## measure size, speed and cost on real services (release build); BENCH="--json quiet", PEER="command"
	@cargo build --release --quiet --bins --example bench
	@$(SUDO) env "PATH=$(PATH):/usr/sbin:/sbin" $(TARGET)/release/examples/bench $(BENCH)

bench-check: setup recorder ## compare counts and ratios with tests/bench/reference.json; BENCH="size counts scale crowd"
	@cargo build --release --quiet --bins --example bench
	@$(SUDO) env "PATH=$(PATH):/usr/sbin:/sbin" $(TARGET)/release/examples/bench --compare tests/bench/reference.json $(or $(BENCH),size counts scale)

figures: ## draw docs/figures.svg from tests/bench/reference.json, which make bench BENCH="--save tests/bench/reference.json" writes
	docs/figures.py < tests/bench/reference.json > docs/figures.svg

pictures: setup recorder ## draw docs/page-*.webp: the status page of a station of the tests, in Chromium
	cargo test --quiet $(AS_ROOT) --test it -- --ignored page::pictures

aarch64: setup recorder ## build for 64-bit ARM in a chroot of Debian trixie, and try it under emulation
	@$(SUDO) tests/aarch64 $(TARGET)/aarch64
	qemu-aarch64-static $(TARGET)/aarch64/silvasonic-controller --version
	STATION_CONTROLLER="qemu-aarch64-static $(abspath $(TARGET))/aarch64/silvasonic-controller" cargo test --test it -- arrival::seeding arrival::a_long scan::

station-test: $(VIRTUAL)/silvasonic-controller.deb $(VIRTUAL)/recorder ## try the package in virtual stations with USB microphones; SUITES="bookworm trixie", SCENARIOS="plug"
	@$(SUDO) tests/virtual-station/station-test $(VIRTUAL) $(if $(SUITES),--suites "$(SUITES)") $(if $(SCENARIOS),--scenarios "$(SCENARIOS)")

$(VIRTUAL)/silvasonic-controller.deb: $(SOURCES) $(shell find packaging -type f)
	@echo "building the package for the virtual stations"
	@$(MAKE) --no-print-directory deb ARCHS=amd64 >/dev/null
	@mkdir -p $(@D)
	@cp $(TARGET)/packages/silvasonic_controller_$(VERSION)_amd64.oci.tar $(@D)/controller.oci.tar
	@cp $(TARGET)/packages/silvasonic-controller_$(VERSION)_amd64.deb $@

$(VIRTUAL)/recorder: tests/virtual-station/capture.c
	@mkdir -p $(@D)
	@cc -static -O2 -Wall -Wextra -Werror -o $@ $<

# both on a PC; a machine of another kind builds for its own
NATIVE := $(shell dpkg --print-architecture 2>/dev/null)
ARCHS ?= $(if $(filter amd64,$(NATIVE)),amd64 arm64,$(NATIVE))
PACKAGES := $(TARGET)/packages

deb: setup ## make the Debian packages, with the image of the Recorder inside; ARCHS="amd64 arm64"
	@set -e; for arch in $(ARCHS); do packaging/programs $$arch $(TARGET)/programs/$$arch; done
	@set -e; for arch in $(ARCHS); do packaging/deb $$arch $(TARGET)/programs/$$arch $(TARGET)/programs/$(NATIVE)/silvasonic-controller $(PACKAGES); done

images: deb ## make the images as archives for `podman load`, without a registry, and the bill of materials
	@for arch in $(ARCHS); do ls -l $(PACKAGES)/*_$(VERSION)_$$arch.oci.tar; done
	@cargo metadata --locked --format-version 1 --filter-platform $$(rustc -vV | sed -n 's/^host: //p') --features capture | \
		packaging/sbom.py $(foreach arch,$(ARCHS),$(TARGET)/programs/$(arch)/libraries) > $(PACKAGES)/silvasonic-controller_$(VERSION).cdx.json

reproducible: deb ## build the programs and packages of this architecture once more, and compare them
	@rm -rf $(TARGET)/again; packaging/programs $(NATIVE) $(TARGET)/again/programs
	@packaging/deb $(NATIVE) $(TARGET)/again/programs $(TARGET)/again/programs/silvasonic-controller $(TARGET)/again/packages
	@cd $(TARGET)/again/packages && for file in *; do cmp $$file $(abspath $(PACKAGES))/$$file && echo "equal: $$file"; done

package-test: ## test the package of this architecture with lintian, and on bare Debians; SUITES="bookworm trixie"
	@$(SUDO) tests/package $(PACKAGES)/silvasonic-controller_$(VERSION)_$(NATIVE).deb $(SUITES)

release: ## make and check all that is published, with checksums and notes, in target/release-VERSION
	@$(MAKE) --no-print-directory images package-test
	@packaging/release $(PACKAGES) $(TARGET)/release-$(VERSION)

fuzz: setup ## fuzz each parser for FUZZ_S seconds (60), with coverage but without sanitizers, on the stable toolchain
	cd fuzz && RUSTFLAGS="-C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table -C codegen-units=1" cargo build --quiet --release --bins --target $$(rustc -vV | sed -n 's/^host: //p') --target-dir ../$(TARGET)/fuzz
	@FUZZ_CORPUS="$(abspath $(TARGET))/fuzz/corpus" cargo test --quiet --test fuzz
	@export TMPDIR="$$(mktemp -d -p /dev/shm)"; trap 'rm -r "$$TMPDIR"' EXIT; for target in $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))); do \
		mkdir -p $(TARGET)/fuzz/corpus/$$target; echo "fuzzing $$target"; \
		$(TARGET)/fuzz/*/release/$$target -max_total_time=$(or $(FUZZ_S),60) -max_len=8192 -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=$(TARGET)/fuzz/$$target- $(TARGET)/fuzz/corpus/$$target || exit 1; \
	done

soak: setup recorder ## random plugs, faults and kills for SOAK_MINUTES (10), and a ledger of what was lost, doubled or leaked
	@cargo build --quiet --bins --example soak
	@$(SUDO) $(TARGET)/debug/examples/soak

soak-recorder: setup ## record at 384 kHz for SOAK_MINUTES (10) on a disk that freezes every minute, and look for each frame
	@cargo build --quiet --release --features capture --bin silvasonic-recorder --example soak-recorder
	@$(SUDO) env "PATH=$(PATH):/usr/sbin:/sbin" $(TARGET)/release/examples/soak-recorder

lint: format clippy doc ## check format, lints and the documentation's links

format:
	cargo fmt --check

# Without and with the sound library; a build without it must not need it.
clippy: sound
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features capture -- -D warnings

# Of the library and the Recorder: Cargo leaves out a program whose name is the library's.
doc: sound
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --features capture

sound:
	@tests/setup build sound

# what is installed first is needed by what comes next
.NOTPARALLEL:

clean: ## remove what was built
	cargo clean
	rm -f .station
