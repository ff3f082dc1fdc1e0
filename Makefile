TARGET := $(or $(CARGO_TARGET_DIR),target)
recorder: $(TARGET)/static/silvasonic-recorder
$(TARGET)/static/silvasonic-recorder: $(shell find src profiles -type f) Cargo.toml Cargo.lock
	cargo rustc --quiet --bin silvasonic-recorder -- -C target-feature=+crt-static -C strip=debuginfo
	mkdir -p $(@D)
	cp $(TARGET)/debug/silvasonic-recorder $@
