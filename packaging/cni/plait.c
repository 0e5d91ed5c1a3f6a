/* SPDX-License-Identifier: Apache-2.0 */
/* plait's plug-in for CNI and netavark in C: what src/plait/runtimes/cni/shim.py does, word for word, but started in a fraction of the time.
 * `make shim` builds build/plait-cni; install it as `plait` in the directories of plug-ins. The agent leaves it there. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_S 60
#define NEWEST "1.1.0"
enum { BAD_ENVIRONMENT = 4, NO_IO = 5, TRY_AGAIN = 11, UNAVAILABLE = 50 };

typedef struct {
    char *data;
    size_t len, room;
} bytes;

extern char **environ;

static void add(bytes *to, const void *data, size_t len) {
    if (to->len + len + 1 > to->room) {
        to->room = (to->len + len + 1) * 2;
        to->data = realloc(to->data, to->room);
        if (to->data == NULL) _exit(1);
    }
    memcpy(to->data + to->len, data, len);
    to->len += len;
    to->data[to->len] = 0; /* so that it may be read as text */
}

__attribute__((format(printf, 2, 3))) static void add_text(bytes *to, const char *format, ...) {
    char text[8192];
    va_list list;
    va_start(list, format);
    int len = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    add(to, text, len < (int)sizeof text ? (size_t)len : sizeof text - 1);
}

/* All of a file or connection. False if an error ended it. */
static bool read_all(int fd, bytes *to) {
    char part[65536];
    ssize_t got;
    add(to, "", 0);
    while ((got = read(fd, part, sizeof part)) != 0) {
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return false;
        add(to, part, (size_t)got);
    }
    return true;
}

static bool write_all(int fd, const char *data, size_t len) {
    while (len > 0) {
        ssize_t done = write(fd, data, len);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return false;
        data += done, len -= (size_t)done;
    }
    return true;
}

/* The first cniVersion of the input if plait has it, else the newest. */
static const char *version_in(const bytes *given) {
    static const char *const versions[] = {"0.3.1", "0.4.0", "1.0.0", NEWEST};
    const char *at = strstr(given->data, "\"cniVersion\"");
    if (at == NULL) return NEWEST;
    at += strlen("\"cniVersion\"");
    at += strspn(at, " \t\r\n");
    if (*at++ != ':') return NEWEST;
    at += strspn(at, " \t\r\n");
    if (*at++ != '"') return NEWEST;
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        size_t len = strlen(versions[i]);
        if (strncmp(at, versions[i], len) == 0 && at[len] == '"') return versions[i];
    }
    return NEWEST;
}

static int say(const bytes *text, int status) {
    write_all(STDOUT_FILENO, text->data, text->len);
    return status;
}

/* An error as the protocol says it. */
static int refuse(bool netavark, const bytes *given, int code, char *text) {
    bytes said = {0};
    for (char *c = text; *c; c++) *c = *c == '"' ? '\'' : *c == '\\' ? '/' : *c;
    if (netavark) add_text(&said, "{\"error\": \"plait: %s\"}\n", text);
    else add_text(&said, "{\"cniVersion\": \"%s\", \"code\": %d, \"msg\": \"plait: %s\"}\n", version_in(given), code, text);
    return say(&said, 1);
}

static bool one_of(const char *word, const char *const *words) {
    while (*words != NULL && strcmp(word, *words) != 0) words++;
    return *words != NULL;
}

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value != NULL ? value : otherwise;
}

/* HTTP status of the agent's answer and its body; 0 with the reason in `answer` if there is none. */
static int ask(const bytes *body, bytes *answer) {
    const char *path = setting("PLAIT_CNI_SOCKET", "/run/plait/cni.sock");
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = TIMEOUT_S};
    bytes request = {0}, got = {0};
    bool done = false;
    errno = ENAMETOOLONG;
    int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (link >= 0 && strlen(path) < sizeof there.sun_path) {
        strcpy(there.sun_path, path);
        add_text(&request, "POST /cni HTTP/1.1\r\nHost: plait\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n", body->len);
        add(&request, body->data, body->len);
        setsockopt(link, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        setsockopt(link, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        done = connect(link, (struct sockaddr *)&there, sizeof there) == 0 && write_all(link, request.data, request.len) && read_all(link, &got);
    }
    if (!done) {
        add_text(answer, "%s: %s", path, errno == EAGAIN ? "no answer in time" : strerror(errno));
        return 0;
    }
    char *end = strstr(got.data, "\r\n\r\n"), *length = strcasestr(got.data, "content-length:");
    if (end == NULL || length == NULL || length > end || strtoul(length + 15, NULL, 10) != got.len - (size_t)(end + 4 - got.data)) {
        add_text(answer, "%s: it ended while it answered", path);
        return 0;
    }
    add(answer, end + 4, got.len - (size_t)(end + 4 - got.data));
    return atoi(got.data + strlen("HTTP/1.1 "));
}

/* Write one request for later, on disk before this returns. The agent takes files in the order of their names. */
static bool keep(const bytes *body) {
    const char *folder = setting("PLAIT_CNI_SPOOL", "/var/lib/plait/cni-pending");
    bytes fresh = {0}, name = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long stamp = now.tv_sec * 1000000000LL + now.tv_nsec;
    add_text(&fresh, "%s/.%020lld-%d", folder, stamp, (int)getpid());
    add_text(&name, "%s/%020lld-%d", folder, stamp, (int)getpid());
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) return false;
    int file = open(fresh.data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) return false;
    bool done = write_all(file, body->data, body->len) && fsync(file) == 0;
    return close(file) == 0 && done && rename(fresh.data, name.data) == 0;
}

/* The agent is away: removals are kept for it, everything else is to be tried again. */
static int do_without(bool netavark, const char *verb, const bytes *given, const bytes *body, const bytes *why) {
    static const char *const removals[] = {"DEL", "teardown", NULL};
    bytes text = {0};
    if (one_of(verb, removals)) {
        if (keep(body)) return 0;
        add_text(&text, "the agent is away (%s), and the removal cannot be kept for it: %s", why->data, strerror(errno));
        return refuse(netavark, given, NO_IO, text.data);
    }
    add_text(&text, "the plait agent of this host does not answer (%s): start it (systemctl start plait) and try again", why->data);
    return refuse(netavark, given, strcmp(verb, "STATUS") == 0 ? UNAVAILABLE : TRY_AGAIN, text.data);
}

static void add_field(bytes *to, const char *name, const char *value) {
    add(to, name, strlen(name));
    add(to, value, strlen(value) + 1);
}

int main(int count, char **arguments) {
    static const char *const cni[] = {"ADD", "DEL", "CHECK", "GC", "STATUS", NULL};
    static const char *const netavark_verbs[] = {"create", "setup", "teardown", NULL};
    bool netavark = count > 1;
    const char *verb = netavark ? arguments[1] : setting("CNI_COMMAND", "");
    bytes given = {0}, body = {0}, answer = {0};
    if (netavark && strcmp(verb, "info") == 0) {
        add_text(&answer, "{\"version\": \"0.1.0\", \"api_version\": \"1.0.0\"}\n");
        return say(&answer, 0);
    }
    read_all(STDIN_FILENO, &given);
    if (!netavark && strcmp(verb, "VERSION") == 0) {
        add_text(&answer, "{\"cniVersion\": \"%s\", \"supportedVersions\": [\"0.3.1\", \"0.4.0\", \"1.0.0\", \"1.1.0\"]}\n", version_in(&given));
        return say(&answer, 0);
    }
    if (!one_of(verb, netavark ? netavark_verbs : cni)) {
        add_text(&answer, "this is a plug-in for container engines: it takes %s",
                 netavark ? "create, setup PATH, teardown PATH, info" : "CNI_COMMAND of ADD, DEL, CHECK, GC, STATUS, VERSION");
        return refuse(netavark, &given, BAD_ENVIRONMENT, answer.data);
    }
    if (netavark) {
        add_field(&body, "NETAVARK_COMMAND=", verb);
        if (count > 2) add_field(&body, "NETAVARK_NETNS=", arguments[2]);
    } else
        for (char **one = environ; *one != NULL; one++)
            if (strncmp(*one, "CNI_", 4) == 0) add_field(&body, "", *one);
    add(&body, "", 1);
    add(&body, given.data, given.len);
    int status = ask(&body, &answer);
    return status == 0 ? do_without(netavark, verb, &given, &body, &answer) : say(&answer, status == 200 ? 0 : 1);
}
