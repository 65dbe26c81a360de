/* The flat guests' library; see guest.h. */
#include "guest.h"

struct multiboot_info *boot_info;

void leave(u8 code) {
  for (;;) {
    outb(EXIT_PORT, code);
    asm volatile("cli; hlt");
  }
}

/* ---- console ---- */

void put_char(char c) {
  while (!(inb(COM1 + 5) & 0x20)) cpu_relax();
  outb(COM1, c);
}

void put_text(const char *text) {
  while (*text) put_char(*text++);
}

void put_number(u64 value) {
  char digits[21];
  int n = 0;
  do {
    digits[n++] = '0' + value % 10;
    value /= 10;
  } while (value);
  while (n) put_char(digits[--n]);
}

void put_hex(u64 value) {
  int shift = 60;
  put_text("0x");
  while (shift > 0 && !(value >> shift)) shift -= 4;
  for (; shift >= 0; shift -= 4) put_char("0123456789abcdef"[value >> shift & 15]);
}

void put_field(const char *name, u64 value) {
  put_char(' ');
  put_text(name);
  put_char('=');
  put_number(value);
}

int get_char(void) { return inb(COM1 + 5) & 1 ? inb(COM1) : -1; }

/* ---- command line ---- */

static const char *value_of(const char *name) {
  const char *at = (const char *)(u64)boot_info->cmdline;
  if (!(boot_info->flags & 4)) return 0;
  for (; *at; at++) {
    const char *n = name;
    const char *c = at;
    if (at != (const char *)(u64)boot_info->cmdline && at[-1] != ' ') continue;
    while (*n && *n == *c) n++, c++;
    if (!*n && *c == '=') return c + 1;
  }
  return 0;
}

u64 option(const char *name, u64 otherwise) {
  const char *at = value_of(name);
  u64 value = 0;
  if (!at || *at < '0' || *at > '9') return otherwise;
  while (*at >= '0' && *at <= '9') value = value * 10 + (*at++ - '0');
  return value;
}

int option_is(const char *name, const char *word) {
  const char *at = value_of(name);
  if (!at) return 0;
  while (*word && *word == *at) word++, at++;
  return !*word && (!*at || *at == ' ');
}

/* ---- interrupts ---- */

struct __attribute__((packed)) gate {
  u16 low, selector;
  u8 stack, type;
  u16 middle;
  u32 high, zero;
};
static struct gate idt[256] __attribute__((aligned(16)));
static handler *handlers[256];
extern u8 interrupt_stubs[];

void interrupt(struct frame *frame) {
  handler *h = handlers[frame->vector & 255];
  if (h) {
    h(frame);
    return;
  }
  if (frame->vector == SPURIOUS_VECTOR) return;
  put_text("guest: unexpected vector");
  put_field("vector", frame->vector);
  put_field("error", frame->error);
  put_text(" rip=");
  put_hex(frame->rip);
  put_char('\n');
  leave(0x7e);
}

void on_interrupt(u8 vector, handler *run_it) { handlers[vector] = run_it; }

static void load_idt(void) {
  struct __attribute__((packed)) {
    u16 limit;
    u64 base;
  } pointer = {sizeof idt - 1, (u64)idt};
  asm volatile("lidt %0" ::"m"(pointer));
}

void apic_write(u32 reg, u32 value) { *(volatile u32 *)(0xfee00000UL + reg) = value; }
u32 apic_read(u32 reg) { return *(volatile u32 *)(0xfee00000UL + reg); }
void apic_done(void) { apic_write(0xb0, 0); }

void interrupts_on(void) {
  for (int v = 0; v < 256; v++) {
    u64 a = (u64)interrupt_stubs + v * 16;
    idt[v] = (struct gate){a, 8, 0, 0x8e, a >> 16, a >> 32, 0};
  }
  load_idt();
  /* A GSI below 16 raises the PIC as well as the IOAPIC: without this its vector 0 comes. */
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
  apic_write(0xf0, 0x100 | SPURIOUS_VECTOR);
}

void timer_every(u32 microseconds) {
  apic_write(0x3e0, 0xb); /* divide by 1 */
  apic_write(0x320, 0x20000 | TIMER_VECTOR);
  apic_write(0x380, microseconds * 1000);
}

/* ---- kvmclock: KVM cpuid.rst, msr.rst (MSR_KVM_SYSTEM_TIME_NEW) ---- */

struct __attribute__((packed, aligned(64))) pvclock {
  u32 version, pad;
  u64 tsc, system_time;
  u32 multiplier;
  signed char shift;
  u8 flags, pad2[2];
};
static volatile struct pvclock clocks[CPUS_MAX];

int clock_on(u32 cpu) {
  u32 a = 0x40000001, b, c = 0, d;
  asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (!(a & 1 << 3)) return 0;
  wrmsr(0x4b564d01, (u64)&clocks[cpu] | 1);
  return 1;
}

u64 clock_read(u32 cpu) {
  volatile struct pvclock *p = &clocks[cpu];
  for (;;) {
    u32 version = p->version;
    barrier();
    u64 delta = rdtsc() - p->tsc, high, low;
    delta = p->shift < 0 ? delta >> -p->shift : delta << p->shift;
    asm("mul %3" : "=a"(low), "=d"(high) : "a"(delta), "r"((u64)p->multiplier));
    u64 now = p->system_time + (high << 32 | low >> 32);
    barrier();
    if (version == p->version && !(version & 1)) return now;
  }
}

/* ---- more vCPUs ---- */

u64 ap_stack;
static u8 ap_stacks[CPUS_MAX][8192] __attribute__((aligned(16)));
static void (*ap_run)(u32);
static volatile u32 ap_started;
extern u8 ap_trampoline[], ap_trampoline_end[];

void ap_main(void) {
  u32 cpu = ap_started + 1;
  load_idt();
  apic_write(0xf0, 0x100 | SPURIOUS_VECTOR);
  barrier();
  ap_started = cpu;
  ap_run(cpu);
  for (;;) asm volatile("cli; hlt");
}

/* Intel SDM 3, 9.4.4.1: INIT, then start-up IPI. */
void start_cpus(u32 count, void (*run_it)(u32)) {
  for (u8 *from = ap_trampoline, *to = (u8 *)0x8000; from < ap_trampoline_end; from++, to++) *(volatile u8 *)to = *from;
  ap_run = run_it;
  for (u32 cpu = 1; cpu <= count; cpu++) {
    ap_stack = (u64)ap_stacks[cpu] + sizeof ap_stacks[cpu];
    barrier();
    apic_write(0x310, cpu << 24);
    apic_write(0x300, 0x4500);
    apic_write(0x310, cpu << 24);
    apic_write(0x300, 0x4608);
    while (ap_started < cpu) cpu_relax();
  }
}

void guest_main(u32 magic, struct multiboot_info *info) {
  boot_info = info;
  if (magic != 0x2badb002) leave(0x7d);
  run();
  leave(0);
}
