/* The yardstick's backend: whole answers from memory, so that it costs less than what is measured.
 *
 *   backend PORT PREFIX[@MILLISECONDS] FILE [PREFIX[@MILLISECONDS] FILE ...]
 *
 * Listens on 127.0.0.1:PORT. A request whose target begins with PREFIX is answered with FILE (head and body) as it is;
 * the first that fits does, so many milliseconds after the request. Requests have no body, and a head of at most 8 KiB. A connection is closed at the first
 * request that fits nothing. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 1 << 16, HEAD = 8 << 10, EVENTS = 256, ANSWERS = 32 };

struct answer { const char *prefix; size_t prefix_length; char *bytes; size_t length; long long delay; };
struct connection { size_t read, sent; const struct answer *answer, *later; long long due; int waits_to_write; char head[HEAD]; };

static struct answer answers[ANSWERS];
static int count, poll_fd;
static struct connection *connections[FILES];
/* Connections whose answer is not due yet. */
static int waiting[FILES], waiters;

static void fail(const char *what) { perror(what); exit(1); }

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void load(const char *prefix, const char *path) {
    struct answer *answer = &answers[count++];
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail(path);
    answer->prefix = prefix;
    const char *delay = strchr(prefix, '@');
    answer->delay = delay ? atoi(delay + 1) * 1000000LL : 0;
    answer->prefix_length = delay ? (size_t)(delay - prefix) : strlen(prefix);
    answer->length = ftell(file);
    answer->bytes = malloc(answer->length);
    rewind(file);
    if (!answer->bytes || fread(answer->bytes, 1, answer->length, file) != answer->length) fail(path);
    fclose(file);
}

static void watch(int operation, int fd, unsigned events) {
    struct epoll_event event = { .events = events, .data.fd = fd };
    if (epoll_ctl(poll_fd, operation, fd, &event)) fail("epoll_ctl");
}

static void finish(int fd) {
    for (int at = 0; connections[fd]->later && at < waiters; at++)
        if (waiting[at] == fd) waiting[at] = waiting[--waiters];
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

/* Whether the connection goes on, with nothing left to send. */
static int write_rest(int fd, struct connection *to) {
    while (to->answer) {
        ssize_t sent = send(fd, to->answer->bytes + to->sent, to->answer->length - to->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            if (!to->waits_to_write) watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
            to->waits_to_write = 1;
            return 0;
        }
        if (sent < 0) return finish(fd), 0;
        to->sent += sent;
        if (to->sent == to->answer->length) to->answer = NULL, to->sent = 0;
    }
    if (to->waits_to_write) watch(EPOLL_CTL_MOD, fd, EPOLLIN);
    to->waits_to_write = 0;
    return 1;
}

static const struct answer *find(const struct connection *from, size_t length) {
    const char *target = memchr(from->head, ' ', length);
    for (int at = 0; target && at < count; at++)
        if (!strncmp(target + 1, answers[at].prefix, answers[at].prefix_length)) return &answers[at];
    return NULL;
}

static void serve(int fd) {
    struct connection *here = connections[fd];
    if (!write_rest(fd, here)) return;
    ssize_t got = recv(fd, here->head + here->read, HEAD - here->read, 0);
    if (got < 0 && errno == EAGAIN) got = 0;
    else if (got <= 0) { finish(fd); return; }
    here->read += got;
    char *end;
    while (!here->later && (end = memmem(here->head, here->read, "\r\n\r\n", 4))) {
        size_t length = end + 4 - here->head;
        const struct answer *found = find(here, length);
        if (!found) { finish(fd); return; }
        here->read -= length;
        memmove(here->head, here->head + length, here->read);
        if (found->delay) {
            here->later = found;
            here->due = now() + found->delay;
            waiting[waiters++] = fd;
            return;
        }
        here->answer = found;
        if (!write_rest(fd, here)) return;
    }
    if (here->read == HEAD) finish(fd);
}

/* Sends what is due; how long to wait for what is next. NULL: nothing is. */
static const struct timespec *send_due(void) {
    static struct timespec left;
    if (!waiters) return NULL;
    for (int at = 0; at < waiters;) {
        int fd = waiting[at];
        struct connection *to = connections[fd];
        if (to->due > now()) { at++; continue; }
        waiting[at] = waiting[--waiters];
        to->answer = to->later;
        to->later = NULL;
        serve(fd);
    }
    if (!waiters) return NULL;
    long long next = connections[waiting[0]]->due;
    for (int at = 1; at < waiters; at++)
        if (connections[waiting[at]]->due < next) next = connections[waiting[at]]->due;
    next -= now();
    if (next < 0) next = 0;
    left = (struct timespec){ .tv_sec = next / 1000000000LL, .tv_nsec = next % 1000000000LL };
    return &left;
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= FILES || !(connections[fd] = calloc(1, sizeof(struct connection)))) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

int main(int argc, char **argv) {
    if (argc < 4 || argc % 2 || argc / 2 - 1 > ANSWERS) {
        fprintf(stderr, "backend PORT PREFIX[@MILLISECONDS] FILE [PREFIX[@MILLISECONDS] FILE ...]\n");
        return 2;
    }
    for (int at = 2; at < argc; at += 2) load(argv[at], argv[at + 1]);
    prctl(PR_SET_TIMERSLACK, 1);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr = { htonl(INADDR_LOOPBACK) } };
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) fail("listen");
    if ((poll_fd = epoll_create1(0)) < 0) fail("epoll_create1");
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_pwait2(poll_fd, events, EVENTS, send_due(), NULL);
        for (int at = 0; at < ready; at++) {
            int fd = events[at].data.fd;
            if (fd == listener) accept_all(fd);
            else if (connections[fd]) serve(fd);
        }
    }
}
