# The server: one static program, without a shell, on nothing. Built from the top of the repository:
#
#   docker build -f scripts/docker/server.Dockerfile -t minitcptunnel-server .
#
# BuildKit is needed (docker 23 or newer): for the cache, and for the list of ignored files beside this file, which podman
# and buildah are told with --ignorefile. The configuration is /app/server_config.yaml; what it names without a leading / is under /app.

ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-slim-bookworm AS build
WORKDIR /src
COPY . .
# Static with glibc, whose memory goes back to the system when a load has gone. Its name service is in the program, too.
# Set for one target by name, the flags spare the compiler's own plug-ins, which cannot be static; they come on top of
# those in .cargo/config.toml, which a variable would replace.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    target="$(rustc --print host-tuple)" && \
    cargo build --release --locked --bin minitcptunnel-server --target "$target" \
        --config "target.'cfg(all())'.rustflags=['-Ctarget-feature=+crt-static']" && \
    install -D -m 755 "target/$target/release/minitcptunnel-server" /out/usr/local/bin/minitcptunnel-server && \
    install -d -o 65532 -g 65532 -m 755 /out/app && \
    install -d -o 65532 -g 65532 -m 700 /out/app/certs && \
    install -d -o 65532 -g 65532 -m 750 /out/app/logs

FROM scratch
LABEL org.opencontainers.image.title="minitcptunnel-server" \
      org.opencontainers.image.description="Opens public ports for the services of its clients, and takes TLS in for target services of its own" \
      org.opencontainers.image.source="https://github.com/minitcptunnel/minitcptunnel" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /out/ /
# Nobody in particular; the same number in both images, so that both can read what one has made.
USER 65532:65532
WORKDIR /app
EXPOSE 8443
# Ends nothing and changes nothing: it asks for the beginning of a TLS handshake. Without a shell it must be a program.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/minitcptunnel-server", "health", "--config", "/app/server_config.yaml"]
ENTRYPOINT ["/usr/local/bin/minitcptunnel-server"]
CMD ["--config", "/app/server_config.yaml"]
