# --build-arg RUST=… lets a mirror of yours stand in for the base image.
ARG RUST=rust:1.95-bookworm
FROM ${RUST} AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools cmake && rm -rf /var/lib/apt/lists/*
ARG TARGETARCH=amd64
WORKDIR /src
COPY . .
RUN case "$TARGETARCH" in amd64) t=x86_64 ;; arm64) t=aarch64 ;; *) exit 1 ;; esac \
 && t=$t-unknown-linux-musl && rustup target add $t \
 && export CC_$(echo $t | tr - _)=musl-gcc \
 && cargo build --locked --profile dist --target $t --bin portcullis \
 && cp target/$t/dist/portcullis /portcullis

FROM scratch
COPY --from=build /portcullis /portcullis
USER 65532:65532
EXPOSE 8080 8443 9090 9091
ENTRYPOINT ["/portcullis"]
