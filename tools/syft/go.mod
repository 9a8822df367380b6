// The program that lists what is in an image, built from its published module.
module finetune.dev/syft

go 1.26.0
