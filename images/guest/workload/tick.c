/* Ticks: a counter and CLOCK_MONOTONIC every tick_ms; the counter rises by one a line whatever the timer did. Every stat_ms the counters of
 * all threads follow (a character costs 0.2 ms in a lab host, and a line of counters has 200). Reads commands from the console between ticks.
 *   tick n=17 t=1234567890
 *   stat n=20 memoryChecks=... ...
 *   verdict ok=1 ticks=... (the same counters)
 * Commands, one a line: end (verdict, then options.then), then WORD, stat, rate BYTES, panic, reboot. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include "workload.h"

static unsigned long ticks;
static int end_wanted;

static unsigned long get(atomic_ulong *c) { return atomic_load(c); }

static void say_counters(const char *word) {
  struct counters *c = &counters;
  char serial[80] = "";
  if (options.mtty)
    snprintf(serial, sizeof serial, " serialBytes=%lu serialErrors=%lu", get(&c->serial_bytes), get(&c->serial_errors));
  say("%s n=%lu memoryChecks=%lu memoryErrors=%lu memoryLaps=%lu dmas=%lu dmaChecks=%lu dmaErrors=%lu irqs=%lu irqErrors=%lu "
      "regChecks=%lu regErrors=%lu clockReads=%lu clockBack=%lu dmaBytes=%lu%s",
      word, ticks, get(&c->memory_checks), get(&c->memory_errors), get(&c->memory_laps), get(&c->dmas), get(&c->dma_checks),
      get(&c->dma_errors), get(&c->irqs), get(&c->irq_errors), get(&c->reg_checks), get(&c->reg_errors), get(&c->clock_reads),
      get(&c->clock_back), get(&c->dma_bytes), serial);
}

static void verdict(void) {
  atomic_store(&writer_pause, 1);
  writer_verify_all();
  edu_verify_ring();
  bringup_verify_ring();
  struct counters *c = &counters;
  int ok = !(get(&c->memory_errors) | get(&c->dma_errors) | get(&c->irq_errors) | get(&c->reg_errors) | get(&c->clock_back) |
             get(&c->serial_errors));
  say_counters(ok ? "verdict ok=1" : "verdict ok=0");
}

static void command(char *line) {
  char *argument = strchr(line, ' ');
  if (argument) *argument++ = 0;
  if (!strcmp(line, "end")) end_wanted = 1;
  else if (!strcmp(line, "stat")) say_counters("stat");
  else if (!strcmp(line, "rate") && argument) options.rate = strtoull(argument, NULL, 0);
  else if (!strcmp(line, "then") && argument) snprintf(options.then, sizeof options.then, "%s", argument);
  else if (!strcmp(line, "panic")) write_text("/proc/sysrq-trigger", "c");
  else if (!strcmp(line, "reboot")) reboot(RB_AUTOBOOT);
  else if (*line) say("error kind=command text=%s", line);
}

static void read_commands(void) {
  static char line[128];
  static size_t length;
  struct pollfd typed = {0, POLLIN, 0};
  while (poll(&typed, 1, 0) > 0 && (typed.revents & POLLIN)) {
    char c;
    if (read(0, &c, 1) != 1) return;
    if (c == '\n' || c == '\r') {
      line[length] = 0;
      length = 0;
      command(line);
    } else if (length < sizeof line - 1) line[length++] = c;
  }
}

/* What is typed must not turn up between our lines. */
static void echo_off(void) {
  struct termios t;
  if (tcgetattr(0, &t) < 0) return;
  t.c_lflag &= ~(ECHO | ECHONL);
  tcsetattr(0, TCSANOW, &t);
}

void tick_run(void) {
  echo_off();
  writer_start();
  clock_start();
  if (options.edu && edu_start() < 0) say("note there is no edu device: no DMA, no interrupts");
  if (options.bringup && bringup_start() < 0) say("error kind=start text=no-vfio-bringup-or-no-driver-for-it");
  if (options.mtty && mtty_start() < 0) say("error kind=start text=no-mtty-or-no-serial-port-of-it");
  uint64_t start = now_ns(), next = start;
  unsigned long stat_every = options.tick_ms < options.stat_ms ? options.stat_ms / options.tick_ms : 1;
  while (!end_wanted && (!options.duration_s || now_ns() - start < options.duration_s * 1000000000ull)) {
    ticks++;
    say("tick n=%lu t=%llu", ticks, (unsigned long long)now_ns());
    if (ticks % stat_every == 0) say_counters("stat");
    read_commands();
    next += options.tick_ms * 1000000ull;
    if (next < now_ns()) next = now_ns(); /* late: go on from here, do not hurry after */
    struct timespec t = {next / 1000000000u, next % 1000000000u};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
  }
  verdict();
}
