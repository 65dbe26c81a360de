/* What a TCP socket of this host does with plain bytes: FROM -> socket -> TO, a process at each end, 1 MiB at a time. Prints nanoseconds.
 * Usage: device-state-peer FROM TO. For bench/device-state.ts. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (1 << 20)

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void must(int good, const char *what) {
  if (good) return;
  perror(what);
  exit(1);
}

static void copy(int from, int to) {
  char *buffer = malloc(CHUNK);
  for (;;) {
    ssize_t got = read(from, buffer, CHUNK);
    must(got >= 0, "read");
    if (got == 0) break;
    for (ssize_t done = 0, wrote; done < got; done += wrote) {
      wrote = write(to, buffer + done, got - done);
      must(wrote > 0, "write");
    }
  }
  free(buffer);
}

int main(int argc, char **argv) {
  must(argc == 3, "usage");
  int from = open(argv[1], O_RDONLY), to = open(argv[2], O_WRONLY);
  must(from >= 0 && to >= 0, "open");
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof at;
  must(bind(listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(listener, 1) == 0, "listen");
  must(getsockname(listener, (struct sockaddr *)&at, &length) == 0, "getsockname");
  pid_t child = fork();
  must(child >= 0, "fork");
  if (child == 0) {
    int in = accept(listener, NULL, NULL);
    must(in >= 0, "accept");
    copy(in, to);
    _exit(0);
  }
  int out = socket(AF_INET, SOCK_STREAM, 0);
  must(connect(out, (struct sockaddr *)&at, sizeof at) == 0, "connect");
  uint64_t began = now();
  copy(from, out);
  close(out);
  int status = 0;
  must(waitpid(child, &status, 0) == child && status == 0, "the receiver");
  printf("%llu\n", (unsigned long long)(now() - began));
  return 0;
}
