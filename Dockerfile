# The service in a small image: built with Rust, run on plain Debian as an ordinary user.
#
#   docker build -t aura-hitl .
#   docker run --rm aura-hitl demo

FROM rust:1.95-bookworm AS build
WORKDIR /build

# First the dependencies alone, on an empty program: this layer is built again only when
# Cargo.toml or Cargo.lock changes. Beyond Rust they need a C compiler (SQLite, AWS-LC), which this
# image has, and nothing else; nothing is downloaded but crates.
COPY Cargo.toml Cargo.lock ./
# Cargo wants to read what the tests share, and does not build it.
COPY tests/support/Cargo.toml tests/support/
RUN mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs tests/support/lib.rs \
    && cargo build --release --locked \
    && rm -r src

# Then the program. config and migrations are compiled in. The stubs above may be newer than the
# files copied here, and Cargo goes by the time of change.
COPY config config
COPY migrations migrations
COPY src src
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked

FROM debian:bookworm-slim
# A number, so that an orchestrator can see that it is not root.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin aura-hitl \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/aura-hitl
# Roots to trust: Redis over TLS (rediss://) is checked against the system's.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/aura-hitl /usr/local/bin/aura-hitl
COPY config /etc/aura-hitl
COPY LICENSE /usr/share/doc/aura-hitl/LICENSE

# Inside a container only 0.0.0.0 is reachable from outside it, so DATABASE_URL must be set. The
# embedded mode: DATABASE_URL=sqlite:/var/lib/aura-hitl/aura-hitl.db, and a volume to keep it.
ENV HOST=0.0.0.0 \
    PORT=8081 \
    AURA_HITL_DATA_DIR=/var/lib/aura-hitl
WORKDIR /var/lib/aura-hitl
USER 10001:10001
EXPOSE 8081
# Ready means: the ledger and the courier answer.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
    CMD ["aura-hitl", "healthcheck"]
ENTRYPOINT ["aura-hitl"]
CMD ["serve"]
