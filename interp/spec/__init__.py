"""What a study is: frozen models, the reading of study files, the grammar of hook points. No torch."""
