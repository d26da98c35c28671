"""What the fusion sees beside stage 4's class token."""

table = dict(
    title="Ablation: local and global tokens",
    rows=[
        *(
            dict(name=f"tokens_{tokens}", title=f"LORA-V, {said}", flags=f"--tokens {tokens}")
            for tokens, said in (("none", "neither"), ("global", "global tokens"), ("local", "local tokens"))
        ),
        dict(name="tokens_both", title="LORA-V, both", same_as="lora_v"),
    ],
)
