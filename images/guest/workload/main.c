/* init: mounts, modules, options from the kernel command line, then one of the modes. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "workload.h"

struct options options;
struct counters counters;

void say(const char *format, ...) {
  char line[512];
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(line, sizeof line - 1, format, arguments);
  va_end(arguments);
  if (n < 0) return;
  if (n > (int)sizeof line - 2) n = sizeof line - 2;
  line[n++] = '\n';
  for (int done = 0; done < n;) {
    ssize_t w = write(1, line + done, n - done);
    if (w < 0 && errno != EINTR) return;
    if (w > 0) done += w;
  }
}

void complain(const char *format, ...) {
  static atomic_uint said;
  char line[400];
  va_list arguments;
  if (atomic_fetch_add(&said, 1) >= 20) return;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  say("error %s", line);
}

uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

void sleep_us(uint64_t us) {
  struct timespec t = {us / 1000000, us % 1000000 * 1000};
  while (nanosleep(&t, &t) < 0 && errno == EINTR) {
  }
}

int read_text(const char *path, char *into, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  size_t done = 0;
  ssize_t n = 0;
  while (done < size - 1 && (n = read(fd, into + done, size - 1 - done)) > 0) done += n;
  close(fd);
  into[done] = 0;
  return n < 0 ? -1 : (int)done;
}

int write_text(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = write(fd, text, strlen(text));
  close(fd);
  return n < 0 ? -1 : 0;
}

static uint64_t number(const char *text) {
  char *end;
  uint64_t value = strtoull(text, &end, 0);
  if (*end == 'K' || *end == 'k') value <<= 10;
  if (*end == 'M' || *end == 'm') value <<= 20;
  return value;
}

static void copy_word(char *into, size_t size, const char *value) {
  snprintf(into, size, "%s", value);
}

static void read_options(void) {
  static char line[4096];
  options = (struct options){"workload", "poweroff", 50, 1000, 20, 4 << 20, 32 << 20, 32, 0, 512, 1, 1, 0, 0};
  if (read_text("/proc/cmdline", line, sizeof line) < 0) return;
  for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
    char *value = strchr(word, '=');
    if (!value) continue;
    *value++ = 0;
    if (!strcmp(word, "mode")) copy_word(options.mode, sizeof options.mode, value);
    if (!strcmp(word, "then")) copy_word(options.then, sizeof options.then, value);
    if (!strcmp(word, "tick")) options.tick_ms = number(value);
    if (!strcmp(word, "stat")) options.stat_ms = number(value);
    if (!strcmp(word, "clock")) options.clock_ms = number(value);
    if (!strcmp(word, "rate")) options.rate = number(value);
    if (!strcmp(word, "writer")) options.writer_bytes = number(value);
    if (!strcmp(word, "ring")) options.ring_pages = number(value);
    if (!strcmp(word, "duration")) options.duration_s = number(value);
    if (!strcmp(word, "blocks")) options.nvme_blocks = number(value);
    if (!strcmp(word, "seed")) options.seed = number(value);
    if (!strcmp(word, "edu")) options.edu = number(value);
    if (!strcmp(word, "bringup")) options.bringup = number(value);
    if (!strcmp(word, "mtty")) options.mtty = number(value);
  }
  if (options.tick_ms == 0) options.tick_ms = 50;
}

/* /modules/order lists them, dependencies first. */
static void load_modules(void) {
  char order[1024];
  if (read_text("/modules/order", order, sizeof order) < 0) return;
  for (char *name = strtok(order, "\n"); name; name = strtok(NULL, "\n")) {
    char path[256];
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) < 0) say("error kind=module name=%s errno=%d", name, errno);
    if (fd >= 0) close(fd);
  }
}

static void mount_all(void) {
  mkdir("/proc", 0755);
  mkdir("/sys", 0755);
  mkdir("/dev", 0755);
  mount("proc", "/proc", "proc", 0, 0);
  mount("sys", "/sys", "sysfs", 0, 0);
  mount("dev", "/dev", "devtmpfs", 0, 0);
}

/* A shell on the console, for people. */
static void shell_run(void) {
  pid_t child = fork();
  if (child == 0) {
    setsid();
    int tty = open("/dev/ttyS0", O_RDWR);
    if (tty >= 0) dup2(tty, 0), dup2(tty, 1), dup2(tty, 2);
    setenv("PATH", "/bin", 1);
    execl("/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin; exec /bin/sh -i", (char *)0);
    _exit(127);
  }
  while (child > 0 && waitpid(-1, NULL, 0) != child) {
  }
}

static void finish(void) {
  sync();
  say("finish then=%s", options.then);
  if (!strcmp(options.then, "reboot")) reboot(RB_AUTOBOOT);
  if (!strcmp(options.then, "halt")) reboot(RB_HALT_SYSTEM);
  if (!strcmp(options.then, "panic")) write_text("/proc/sysrq-trigger", "c");
  if (strcmp(options.then, "stay")) reboot(RB_POWER_OFF);
  for (;;) pause();
}

int main(void) {
  mount_all();
  read_options();
  say("init mono=%llu cpus=%ld mode=%s", (unsigned long long)now_ns(), sysconf(_SC_NPROCESSORS_ONLN), options.mode);
  load_modules();
  if (!strcmp(options.mode, "workload")) tick_run();
  if (!strcmp(options.mode, "nvme")) nvme_run();
  if (!strcmp(options.mode, "peer")) peer_run();
  if (!strcmp(options.mode, "shell")) shell_run();
  finish();
}
