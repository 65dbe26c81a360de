/* Entry of every flat test guest: multiboot-1, from 32-bit flat protected mode to long mode with an identity map of 4 GiB, then
 * guest_main(magic, info). Also the interrupt stubs and the trampoline of the application processors.
 * Only general registers and plain instructions: on a KVM that interprets ring 0 everything else fails. */
#define MULTIBOOT_MAGIC 0x1badb002
#define MULTIBOOT_FLAGS 0x3
#define STACK_SIZE 0x4000
#define AP_BASE 0x8000

	.section .multiboot, "a"
	.balign 4
	.long MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)

	.section .text.start, "ax"
	.code32
	.globl _start
_start:
	mov %eax, %esi
	mov %ebx, %ebp
	/* pml4[0] -> pdpt; pdpt[0..3] -> pd; 2048 pages of 2 MiB, for user mode too. */
	movl $pdpt + 7, pml4
	mov $4, %ecx
	mov $pd + 7, %eax
	mov $pdpt, %edi
1:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	dec %ecx
	jnz 1b
	mov $2048, %ecx
	mov $0x87, %eax
	mov $pd, %edi
2:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	dec %ecx
	jnz 2b
	lgdt gdt_pointer
	/* multiboot leaves ESP undefined (3.2) */
	mov $boot_stack + STACK_SIZE, %esp
	call enter_long
	.code64
	mov $boot_stack + STACK_SIZE, %rsp
	mov %esi, %edi
	mov %ebp, %esi
	call guest_main
3:	hlt
	jmp 3b

	/* Returns to the caller in 64-bit code. Keeps esi, edi and ebp. */
	.code32
enter_long:
	pop %ebx
	mov %cr4, %eax
	or $0x20, %eax
	mov %eax, %cr4
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	ljmp $0x8, $4f
	.code64
4:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %ebx, %ebx
	jmp *%rbx

	/* Copied to AP_BASE; SIPI vector 0x08. Runs in real mode with cs = 0x800. */
	.globl ap_trampoline, ap_trampoline_end
	.code16
ap_trampoline:
	cli
	mov %cs, %ax
	mov %ax, %ds
	lgdtl ap_gdt_pointer - ap_trampoline
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	ljmpl $0x20, $ap_protected
	.balign 4
ap_gdt_pointer:
	.word 47
	.long gdt
ap_trampoline_end:

	.code32
ap_protected:
	mov $0x28, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	/* A stack of one word, for enter_long's return address. APs come up one after another. */
	mov $ap_esp_top, %esp
	call enter_long
	.code64
	mov ap_stack(%rip), %rsp
	call ap_main
5:	hlt
	jmp 5b

	/* Interrupt stubs: 256 of 16 bytes each; push an error code where the CPU does not. */
	.globl interrupt_stubs
	.balign 16
interrupt_stubs:
	vector = 0
	.rept 256
	.balign 16
	.if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
	.else
	push $0
	.endif
	push $vector
	jmp interrupt_common
	vector = vector + 1
	.endr
interrupt_common:
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, %rdi
	call interrupt
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp
	iretq

	.data
	.balign 16
	.globl gdt
gdt:	.quad 0
	.quad 0x00af9b000000ffff	/* 08: code 64 */
	.quad 0x00cf93000000ffff	/* 10: data */
	.quad 0x00cff3000000ffff	/* 18: user data */
	.quad 0x00cf9b000000ffff	/* 20: code 32 */
	.quad 0x00cf93000000ffff	/* 28: data */
gdt_pointer:
	.word 47
	.long gdt

	.bss
	.balign 4096
pml4:	.skip 4096
pdpt:	.skip 4096
pd:	.skip 4 * 4096
boot_stack: .skip STACK_SIZE
	.skip 64
ap_esp_top:
	.skip 8
