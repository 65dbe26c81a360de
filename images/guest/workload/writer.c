/* The writer: writer_bytes of pages, each stamped in every word with its number and the lap; before a page is written again all of it is
 * verified. At options.rate bytes a second. A page that the migration lost shows its content of an earlier lap. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "workload.h"

#define KIND 1
#define WORDS (PAGE / 8)
/* A wake-up is six exits: it is worth as many pages as come together in 20 to 100 ms. */
#define STEP_PAGES 32
#define STEP_LEAST_US 20000
#define STEP_MOST_US 100000

atomic_uint writer_pause;
static uint64_t *pages;
static uint64_t *lap_of; /* 0: not written yet */
static size_t count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void verify(size_t page) {
  const uint64_t *p = pages + page * WORDS;
  uint64_t lap = lap_of[page];
  if (!lap) return;
  atomic_fetch_add(&counters.memory_checks, 1);
  for (size_t w = 0; w < WORDS; w++) {
    if (p[w] == stamp(KIND, page, lap, w)) continue;
    atomic_fetch_add(&counters.memory_errors, 1);
    complain("kind=memory page=%zu word=%zu lap=%llu found=%llx", page, w, (unsigned long long)lap, (unsigned long long)p[w]);
    return;
  }
}

static void rewrite(size_t page, uint64_t lap) {
  uint64_t *p = pages + page * WORDS;
  for (size_t w = 0; w < WORDS; w++) p[w] = stamp(KIND, page, lap, w);
  lap_of[page] = lap;
}

static uint64_t step_us(void) {
  uint64_t step = options.rate ? STEP_PAGES * PAGE * 1000000ull / options.rate : STEP_MOST_US;
  return step < STEP_LEAST_US ? STEP_LEAST_US : step > STEP_MOST_US ? STEP_MOST_US : step;
}

static void *writer(void *unused) {
  (void)unused;
  uint64_t lap = 1, credit = 0, last = now_ns();
  size_t page = 0;
  for (;;) {
    sleep_us(step_us());
    uint64_t now = now_ns();
    credit += (now - last) / 1000 * options.rate / 1000000;
    last = now;
    /* After a long stop do not try to catch up. */
    if (credit > options.rate / 4 + PAGE) credit = options.rate / 4 + PAGE;
    for (; credit >= PAGE && !atomic_load(&writer_pause); credit -= PAGE) {
      pthread_mutex_lock(&mutex);
      verify(page);
      rewrite(page, lap);
      pthread_mutex_unlock(&mutex);
      if (++page == count) {
        page = 0;
        lap++;
        atomic_fetch_add(&counters.memory_laps, 1);
      }
    }
  }
  return NULL;
}

void writer_verify_all(void) {
  pthread_mutex_lock(&mutex);
  for (size_t page = 0; page < count; page++) verify(page);
  pthread_mutex_unlock(&mutex);
}

void writer_start(void) {
  pthread_t thread;
  count = options.writer_bytes / PAGE;
  if (!count || !options.rate) {
    count = 0;
    return;
  }
  pages = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  lap_of = calloc(count, sizeof *lap_of);
  if (pages == MAP_FAILED || !lap_of) {
    complain("kind=start text=no-memory-for-the-writer");
    count = 0;
    return;
  }
  pthread_create(&thread, NULL, writer, NULL);
}
