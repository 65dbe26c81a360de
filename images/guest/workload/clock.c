/* CLOCK_MONOTONIC must never go back, on no vCPU and not between them: a thread a CPU reads the greatest time that anybody saw, then the
 * clock; a smaller reading than that is a step back. Many readings a wake-up: a wake-up is six exits, which cost a lab host 2 ms. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#include "workload.h"

static _Atomic uint64_t greatest;

static void *watch(void *argument) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET((int)(intptr_t)argument, &one);
  sched_setaffinity(0, sizeof one, &one);
  for (;;) {
    for (int i = 0; i < 80; i++) {
      uint64_t before = atomic_load(&greatest), now = now_ns();
      atomic_fetch_add(&counters.clock_reads, 1);
      if (now < before) {
        atomic_fetch_add(&counters.clock_back, 1);
        complain("kind=clock cpu=%d before=%llu now=%llu", (int)(intptr_t)argument, (unsigned long long)before, (unsigned long long)now);
      }
      while (before < now && !atomic_compare_exchange_weak(&greatest, &before, now)) {
      }
    }
    sleep_us(options.clock_ms * 1000ull);
  }
  return NULL;
}

void clock_start(void) {
  long cpus = sysconf(_SC_NPROCESSORS_ONLN);
  for (long cpu = 0; cpu < cpus; cpu++) {
    pthread_t thread;
    pthread_create(&thread, NULL, watch, (void *)(intptr_t)cpu);
  }
}
