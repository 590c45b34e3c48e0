# Waybill from source: one program, no root.

FROM rust:1.95-slim-bookworm AS build
# The allocator is built with it.
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /waybill
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/waybill/target \
    SQLX_OFFLINE=true cargo build --release --locked --bin waybill && cp target/release/waybill /usr/local/bin/

FROM debian:bookworm-slim
# The authorities that servers' certificates are checked against; SSL_CERT_FILE names a file with others.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 waybill && install -d -o waybill -m 700 /var/lib/waybill
COPY --from=build /usr/local/bin/waybill /usr/local/bin/waybill
USER waybill
# Reached from outside the container, as far as its ports are published.
ENV WAYBILL_HTTP_ADDR=0.0.0.0:8080 WAYBILL_METRICS_ADDR=0.0.0.0:9464
EXPOSE 8080 9464
ENTRYPOINT ["waybill"]
CMD ["serve"]
