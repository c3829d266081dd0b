# --build-arg RUST=… lets a mirror of yours stand in for the base image.
ARG RUST=rust:1.95-bookworm
FROM ${RUST} AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# For the architecture that this runs on: `docker build --platform` emulates another one.
RUN make static && cp target/*-unknown-linux-musl/dist/portcullis /portcullis

FROM scratch
COPY --from=build /portcullis /portcullis
USER 65532:65532
EXPOSE 8080 8443 9090 9091
ENTRYPOINT ["/portcullis"]
