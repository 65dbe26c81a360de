/* What every flat test guest has: ports, MSRs, console, interrupts, local APIC, kvmclock, command line, more vCPUs. */
#ifndef GUEST_H
#define GUEST_H
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define EXIT_PORT 0xf4
#define COM1 0x3f8
#define TIMER_VECTOR 0x30
#define SPURIOUS_VECTOR 0xff
#define PIC_VECTOR 0x20

struct multiboot_info {
  u32 flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};
struct multiboot_module {
  u32 start, end, name, reserved;
};

struct frame {
  u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax, vector, error, rip, cs, flags, rsp, ss;
};

static inline void outb(u16 port, u8 v) { asm volatile("outb %0,%1" ::"a"(v), "Nd"(port)); }
static inline void outw(u16 port, u16 v) { asm volatile("outw %0,%1" ::"a"(v), "Nd"(port)); }
static inline void outl(u16 port, u32 v) { asm volatile("outl %0,%1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 inw(u16 port) { u16 v; asm volatile("inw %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 inl(u16 port) { u32 v; asm volatile("inl %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static inline u64 rdtsc(void) { u32 lo, hi; asm volatile("rdtsc" : "=a"(lo), "=d"(hi)); return lo | (u64)hi << 32; }
static inline void wrmsr(u32 msr, u64 v) { asm volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdmsr(u32 msr) { u32 lo, hi; asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr)); return lo | (u64)hi << 32; }
static inline void barrier(void) { asm volatile("" ::: "memory"); }
static inline void cpu_relax(void) { asm volatile("pause" ::: "memory"); }
static inline u32 swap_locked(volatile u32 *p, u32 v) { asm volatile("xchg %0,%1" : "+r"(v), "+m"(*p)::"memory"); return v; }
static inline void lock(volatile u32 *p) { while (swap_locked(p, 1)) cpu_relax(); }
static inline void unlock(volatile u32 *p) { barrier(); *p = 0; }

/* Console on COM1, polled. */
void put_char(char c);
void put_text(const char *text);
void put_number(u64 value);
void put_hex(u64 value);
/* " name=value" */
void put_field(const char *name, u64 value);
/* The next typed byte, or -1. */
int get_char(void);

/* Ends the machine: exit code code<<1|1. Does not return. */
void leave(u8 code) __attribute__((noreturn));

/* The number after "name=" in the command line, else `otherwise`; and whether its text is `word`. */
u64 option(const char *name, u64 otherwise);
int option_is(const char *name, const char *word);
extern struct multiboot_info *boot_info;

typedef void handler(struct frame *frame);
void on_interrupt(u8 vector, handler *run);
/* Local APIC on, PIC masked, IDT loaded. */
void interrupts_on(void);
void apic_write(u32 reg, u32 value);
u32 apic_read(u32 reg);
void apic_done(void);
/* Periodic local APIC timer (KVM's runs at 1 GHz), vector TIMER_VECTOR. */
void timer_every(u32 microseconds);
static inline void wait_interrupt(void) { asm volatile("sti; hlt; cli" ::: "memory"); }

/* kvmclock in nanoseconds, of this vCPU. clock_on() first, on each vCPU; 0 where KVM has none. */
int clock_on(u32 cpu);
u64 clock_read(u32 cpu);

/* Starts `count` further vCPUs, one by one; each runs `run(cpu)`, cpu from 1. */
#define CPUS_MAX 16
void start_cpus(u32 count, void (*run)(u32 cpu));

void guest_main(u32 magic, struct multiboot_info *info);
void run(void);
#endif
