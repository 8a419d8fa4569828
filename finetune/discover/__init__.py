"""What `finetune init` knows of folders, forms and lists of classes."""
